-- (nothing) → an API key
-- KEYS  1 key  2 index of keys
-- ARGV  1 id  2 name  3 scopes  4 digest of the secret  5 lifetime s  6 seconds for which it is listed after its expiry
--       7 limits
-- returns expiry ms
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local expires = now + ARGV[5] * 1000
redis.call('HSET', KEYS[1], 'name', ARGV[2], 'scopes', ARGV[3], 'digest', ARGV[4], 'created_ms', now, 'expires_ms', expires, 'limits', ARGV[7])
redis.call('PEXPIREAT', KEYS[1], expires + ARGV[6] * 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
redis.call('ZADD', KEYS[2], expires + ARGV[6] * 1000, ARGV[1])
redis.call('PEXPIREAT', KEYS[2], redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2])
return expires
