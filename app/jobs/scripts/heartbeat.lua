-- running → running
-- KEYS  1 job  2 leases  3 events
-- ARGV  1 id  2 attempt  3 step  4 lease ms  5 steps  6 channel  7 unfinished ttl s  8 events kept
--       9… name and data of each event
-- returns ok | stale | cancelled | gone
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return 'gone' end
if status == 'cancelled' then return 'cancelled' end
if status ~= 'running' or redis.call('HGET', KEYS[1], 'attempt') ~= ARGV[2] then return 'stale' end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'step', ARGV[3], 'steps', ARGV[5])
redis.call('ZADD', KEYS[2], time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[4], ARGV[1])
for i = 9, #ARGV, 2 do
  redis.call('XADD', KEYS[3], 'MAXLEN', ARGV[8], '*', 'event', ARGV[i], 'data', ARGV[i + 1])
end
if #ARGV > 8 then
  redis.call('EXPIRE', KEYS[3], ARGV[7])
  redis.call('PUBLISH', ARGV[6], ARGV[1])
end
return 'ok'
