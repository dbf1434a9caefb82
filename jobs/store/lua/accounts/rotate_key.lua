-- an API key's secret → a new one; the old one stays valid for the overlap
-- KEYS  1 key
-- ARGV  1 digest of the new secret  2 overlap ms
-- returns rotated | revoked | gone
if redis.call('EXISTS', KEYS[1]) == 0 then return 'gone' end
if redis.call('HEXISTS', KEYS[1], 'revoked_ms') == 1 then return 'revoked' end
-- A repeated call: the client lost its connection before the answer.
if redis.call('HGET', KEYS[1], 'digest') == ARGV[1] then return 'rotated' end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'previous_digest', redis.call('HGET', KEYS[1], 'digest'), 'previous_until_ms',
  now + ARGV[2], 'digest', ARGV[1])
return 'rotated'
