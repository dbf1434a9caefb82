-- receiving → running
-- KEYS  1 batch  2 lines  3 running batches
-- ARGV  1 id  2 token of this upload  3 ttl s
-- returns ok | superseded | gone
local found = redis.call('HMGET', KEYS[1], 'status', 'upload', 'created_ms')
if not found[1] then return 'gone' end
-- This very call again, by a client whose connection broke before the answer.
if found[1] == 'running' and found[2] == ARGV[2] then
  redis.call('EXPIRE', KEYS[1], ARGV[3])
  return 'ok'
end
if found[1] ~= 'receiving' or found[2] ~= ARGV[2] then return 'superseded' end
redis.call('HSET', KEYS[1], 'status', 'running', 'total', redis.call('LLEN', KEYS[2]))
redis.call('ZADD', KEYS[3], found[3], ARGV[1])
for i = 1, 3 do redis.call('EXPIRE', KEYS[i], ARGV[3]) end
return 'ok'
