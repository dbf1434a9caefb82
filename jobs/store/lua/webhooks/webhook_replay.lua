-- delivered | failed → pending: deliver it again, now
-- KEYS  1 delivery  2 due
-- ARGV  1 id  2 ttl s
-- returns 1 | 0 if there is no such delivery
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'status', 'pending', 'attempts', 0)
redis.call('ZADD', KEYS[2], time[1] * 1000 + math.floor(time[2] / 1000), ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return 1
