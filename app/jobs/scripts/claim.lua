-- queued → running
-- KEYS  1 job  2 queue  3 leases  4 events
-- ARGV  1 id  2 worker  3 lease ms  4 channel  5 unfinished ttl s  6 events kept
-- returns attempt | 0 where there is nothing to claim
if redis.call('HGET', KEYS[1], 'status') ~= 'queued' then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local attempt = redis.call('HINCRBY', KEYS[1], 'attempt', 1)
redis.call('HSET', KEYS[1], 'status', 'running', 'worker', ARGV[2], 'started_ms', now, 'step', 0)
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[3], now + ARGV[3], ARGV[1])
redis.call('XADD', KEYS[4], 'MAXLEN', ARGV[6], '*', 'event', 'status', 'data',
  '{"status":"running","attempt":' .. attempt .. '}')
redis.call('EXPIRE', KEYS[4], ARGV[5])
redis.call('PUBLISH', ARGV[4], ARGV[1])
return attempt
