-- leaving → gone, unless it was dropped before
-- KEYS  1 wanted models  2 leaving models
-- ARGV  1 name  2 what was wanted
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] and redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then
  redis.call('HDEL', KEYS[1], ARGV[1])
  redis.call('HSET', KEYS[2], ARGV[1], 'gone')
end
