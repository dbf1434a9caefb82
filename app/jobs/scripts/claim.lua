-- queued → running
-- KEYS  1 job  2 queue  3 leases
-- ARGV  1 id  2 worker  3 lease ms
-- returns attempt | 0 where there is nothing to claim
if redis.call('HGET', KEYS[1], 'status') ~= 'queued' then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local attempt = redis.call('HINCRBY', KEYS[1], 'attempt', 1)
redis.call('HSET', KEYS[1], 'status', 'running', 'worker', ARGV[2], 'started_ms', now, 'step', 0)
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[3], now + ARGV[3], ARGV[1])
return attempt
