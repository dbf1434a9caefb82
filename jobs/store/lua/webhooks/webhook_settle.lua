-- watched → due: jobs that have ended since the last call
-- KEYS  1 watched  2 due
-- ARGV  1 prefix of a job's key  2 ttl s
-- returns the number of deliveries that are due now
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local status = redis.call('HGET', ARGV[1] .. id, 'status')
  if status ~= 'queued' and status ~= 'running' then
    redis.call('ZREM', KEYS[1], id)
    if status then redis.call('ZADD', KEYS[2], now, id) end
  end
end
redis.call('EXPIRE', KEYS[2], ARGV[2])
return redis.call('ZCOUNT', KEYS[2], '-inf', now)
