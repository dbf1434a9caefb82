-- an API key → revoked, for good
-- KEYS  1 key
-- returns revoked | gone
if redis.call('EXISTS', KEYS[1]) == 0 then return 'gone' end
local time = redis.call('TIME')
redis.call('HSETNX', KEYS[1], 'revoked_ms', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('HDEL', KEYS[1], 'previous_digest', 'previous_until_ms')
return 'revoked'
