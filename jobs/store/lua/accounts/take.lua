-- take a token from an owner's bucket, which refills steadily and holds a burst
-- Not idempotent: repeated after a lost answer, it takes a second token. That is all that the owner loses.
-- KEYS  1 bucket
-- ARGV  1 tokens a second  2 burst
-- returns {1 | 0, whole tokens left, ms until the next one}
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local rate, burst = ARGV[1] / 1000, tonumber(ARGV[2])
local held = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = math.min(burst, (held[1] or burst) + math.max(0, now - (held[2] or now)) * rate)
local taken = tokens >= 1 and 1 or 0
tokens = tokens - taken
redis.call('HSET', KEYS[1], 'tokens', string.format('%.6f', tokens), 'at', string.format('%.3f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil(burst / rate) + 1000)
return {taken, math.floor(tokens), math.max(0, math.ceil((1 - tokens % 1) / rate))}
