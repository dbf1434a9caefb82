-- queued | running → cancelled
-- KEYS  13 known  14 leases  15 events  16 finished channel
-- ARGV  3 id  4 result ttl s  5 known ttl s
-- returns {'moved', ending} | {'final'} | {'gone'}
local id, key = ARGV[3], job_key(ARGV[3])
local status = redis.call('HGET', key, 'status')
if not status then return {'gone'} end
if status ~= 'queued' and status ~= 'running' then return {'final'} end
leave(id)
if status == 'running' then end_attempt(id, redis.call('HGET', key, 'attempt'), 'cancelled', '') end
-- An owner that cancels its whole queue is reset to the finish tag of its last started job: cancelled work is not
-- charged.
if status == 'queued' then
  local job = redis.call('HMGET', key, 'owner', 'priority')
  local owner, level = job[1], LEVEL[job[2]]
  local here = waiting_here(level, owner)
  redis.call('ZREMRANGEBYSCORE', here, '-inf', now_us - unfinished_ttl * 1000000)
  if redis.call('EXISTS', here) == 0 then
    local finish = redis.call('ZSCORE', taken_until(level), owner)
    local owners = KEYS[6 + level]
    if finish then redis.call('ZADD', owners, 'XX', finish, owner) else redis.call('ZREM', owners, owner) end
  end
end
redis.call('HSET', key, 'status', 'cancelled', 'finished_ms', now)
redis.call('HDEL', key, 'not_before_ms')
redis.call('EXPIRE', key, ARGV[4])
redis.call('EXPIRE', key .. ':inputs', ARGV[4])
redis.call('EXPIRE', KEYS[15], ARGV[4])
redis.call('EXPIRE', KEYS[13], ARGV[5])
redis.call('ZREM', KEYS[14], id)
redis.call('PUBLISH', KEYS[16], id)
return {'moved', ending(id)}
