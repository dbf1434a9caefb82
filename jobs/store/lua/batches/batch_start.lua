-- receiving → running
-- KEYS  1 batch  2 lines  3 running batches  4 the owner's batches
-- ARGV  1 id  2 token of this upload  3 ttl s
-- returns ok | superseded | gone
local batch = redis.call('HMGET', KEYS[1], 'status', 'upload', 'created_ms')
if not batch[1] then return 'gone' end
-- A repeated call: the client lost its connection before the answer.
if batch[1] == 'running' and batch[2] == ARGV[2] then
  redis.call('EXPIRE', KEYS[1], ARGV[3])
  return 'ok'
end
if batch[1] ~= 'receiving' or batch[2] ~= ARGV[2] then return 'superseded' end
redis.call('HSET', KEYS[1], 'status', 'running', 'total', redis.call('LLEN', KEYS[2]))
redis.call('ZADD', KEYS[3], batch[3], ARGV[1])
redis.call('ZADD', KEYS[4], batch[3], ARGV[1])
for i = 1, 4 do redis.call('EXPIRE', KEYS[i], ARGV[3]) end
return 'ok'
