-- queued | running → cancelled
-- KEYS  13 known  14 leases  15 events  16 finished channel
-- ARGV  3 id  4 result ttl s  5 known ttl s
-- returns moved | final | gone
local id, key = ARGV[3], job_key(ARGV[3])
local status = redis.call('HGET', key, 'status')
if not status then return 'gone' end
if status ~= 'queued' and status ~= 'running' then return 'final' end
leave(id)
if status == 'running' then end_attempt(id, redis.call('HGET', key, 'attempt'), 'cancelled', '') end
redis.call('HSET', key, 'status', 'cancelled', 'finished_ms', now)
redis.call('HDEL', key, 'not_before_ms')
redis.call('EXPIRE', key, ARGV[4])
redis.call('EXPIRE', KEYS[15], ARGV[4])
redis.call('EXPIRE', KEYS[13], ARGV[5])
redis.call('ZREM', KEYS[14], id)
redis.call('PUBLISH', KEYS[16], id)
return 'moved'
