-- absent, or failed → wanted
-- KEYS  1 wanted models  2 leaving models
-- ARGV  1 name  2 what is wanted  3 what is replaced, or empty
-- returns 1, or 0 if something else is wanted under the name by now
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('HDEL', KEYS[2], ARGV[1])
return 1
