-- due → due later: lease deliveries to the caller, which must record their outcome before the lease ends
-- KEYS  1 due
-- ARGV  1 most deliveries  2 lease ms
-- returns ids
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
for _, id in ipairs(ids) do redis.call('ZADD', KEYS[1], now + ARGV[2], id) end
return ids
