-- queued | running → cancelled
-- KEYS  1 job  2 known  3 queue  4 leases  5 events
-- ARGV  1 id  2 result ttl s  3 known ttl s  4 channel
-- returns moved | final | gone
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return 'gone' end
if status ~= 'queued' and status ~= 'running' then return 'final' end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'status', 'cancelled', 'finished_ms', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[5], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[3])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('PUBLISH', ARGV[4], ARGV[1])
return 'moved'
