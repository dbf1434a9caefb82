-- running → succeeded | failed
-- KEYS  1 job  2 images  3 known  4 leases  5 result  6 events
-- ARGV  1 id  2 attempt  3 new status  4 error ('' where none)  5 image hashes  6 result ttl s  7 known ttl s
--       8 channel  9 reproducible  10 sheet ('' where none)  11 telemetry ('' where none)
--       12… picture bytes
-- returns moved | stale | gone
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return 'gone' end
if status ~= 'running' or redis.call('HGET', KEYS[1], 'attempt') ~= ARGV[2] then return 'stale' end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'status', ARGV[3], 'error', ARGV[4], 'image_hashes', ARGV[5],
  'finished_ms', time[1] * 1000 + math.floor(time[2] / 1000))
if ARGV[3] == 'succeeded' then
  redis.call('HSET', KEYS[1], 'step', redis.call('HGET', KEYS[1], 'steps'), 'reproducible', ARGV[9],
    'telemetry', ARGV[11])
  redis.call('SET', KEYS[5], ARGV[1], 'EX', ARGV[6])
end
for i = 12, #ARGV do redis.call('HSET', KEYS[2], i - 12, ARGV[i]) end
if ARGV[10] ~= '' then redis.call('HSET', KEYS[2], 'sheet', ARGV[10]) end
redis.call('EXPIRE', KEYS[1], ARGV[6])
redis.call('EXPIRE', KEYS[2], ARGV[6])
redis.call('EXPIRE', KEYS[6], ARGV[6])
redis.call('EXPIRE', KEYS[3], ARGV[7])
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('PUBLISH', ARGV[8], ARGV[1])
return 'moved'
