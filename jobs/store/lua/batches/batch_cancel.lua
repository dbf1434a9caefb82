-- receiving | running | cancelled → cancelled; may be repeated by a caller that has cancelled only some of its jobs
-- KEYS  1 batch  2 its jobs that have not ended  3 running batches
-- ARGV  1 id
-- returns ids of the jobs that the caller must cancel
local status = redis.call('HGET', KEYS[1], 'status')
if status == 'receiving' or status == 'running' then
  redis.call('HSET', KEYS[1], 'status', 'cancelled')
  redis.call('ZREM', KEYS[3], ARGV[1])
elseif status ~= 'cancelled' then
  return {}
end
return redis.call('SMEMBERS', KEYS[2])
