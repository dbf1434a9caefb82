-- running → running | finished: count the jobs that have ended since the last call; each is counted once
-- KEYS  1 batch  2 its jobs that have not ended  3 running batches
-- ARGV  1 id  2 prefix of a job's key
-- returns {the batch's fields and values (none if it is no longer kept), queued, running}
if redis.call('EXISTS', KEYS[1]) == 0 then return {{}, 0, 0} end
local queued, running = 0, 0
for _, id in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  local status = redis.call('HGET', ARGV[2] .. id, 'status') or 'expired'
  if status == 'queued' then
    queued = queued + 1
  elseif status == 'running' then
    running = running + 1
  else
    redis.call('HINCRBY', KEYS[1], status, 1)
    redis.call('SREM', KEYS[2], id)
  end
end
local batch = redis.call('HMGET', KEYS[1], 'status', 'fed', 'total')
if batch[1] == 'running' and batch[2] == batch[3] and queued + running == 0 then
  redis.call('HSET', KEYS[1], 'status', 'finished')
  redis.call('ZREM', KEYS[3], ARGV[1])
end
return {redis.call('HGETALL', KEYS[1]), queued, running}
