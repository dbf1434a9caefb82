-- receiving → receiving: lines that have arrived replace all after the ones that stay
-- KEYS  1 batch  2 lines
-- ARGV  1 token of this upload  2 how many lines stay  3 ttl s  4… lines
-- returns ok | superseded (by another upload of the same batch, or it no longer receives) | gone
local batch = redis.call('HMGET', KEYS[1], 'status', 'upload')
if not batch[1] then return 'gone' end
if batch[1] ~= 'receiving' or batch[2] ~= ARGV[1] then return 'superseded' end
local kept = tonumber(ARGV[2])
if kept == 0 then redis.call('DEL', KEYS[2]) else redis.call('LTRIM', KEYS[2], 0, kept - 1) end
for i = 4, #ARGV do redis.call('RPUSH', KEYS[2], ARGV[i]) end
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[3])
return 'ok'
