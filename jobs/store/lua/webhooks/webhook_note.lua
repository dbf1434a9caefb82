-- pending → delivered | failed | pending: record the outcome of an attempt
-- Not idempotent: repeated after a lost answer, it counts two attempts, so one fewer is made.
-- KEYS  1 delivery  2 due
-- ARGV  1 id  2 new status  3 HTTP status ('' if none)  4 error ('' if none)
--       5 ms until the next attempt  6 ttl s
-- returns the number of attempts so far
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'status', ARGV[2], 'http_status', ARGV[3], 'error', ARGV[4], 'attempted_ms', now)
if ARGV[2] == 'pending' then
  redis.call('ZADD', KEYS[2], now + ARGV[5], ARGV[1])
  redis.call('HSET', KEYS[1], 'next_ms', now + ARGV[5])
else
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('HDEL', KEYS[1], 'next_ms')
end
redis.call('EXPIRE', KEYS[1], ARGV[6])
return redis.call('HINCRBY', KEYS[1], 'attempts', 1)
