-- (nothing) → queued
-- KEYS  1 job  2 known  3 this job's queue  4-6 all queues of the model  7 idempotency (or the job key again: none)
-- ARGV  1 id  2 request  3 steps  4 fingerprint ('' where there is no idempotency key)  5 max queued
--       6 unfinished ttl s  7 known ttl s
-- returns {'accepted', id} | {'replayed', id} | {'conflict', id} | {'full', waiting}
if ARGV[4] ~= '' then
  local before = redis.call('GET', KEYS[7])
  if before then
    local cut = string.find(before, ' ', 1, true)
    local id = string.sub(before, 1, cut - 1)
    if string.sub(before, cut + 1) == ARGV[4] then return {'replayed', id} end
    return {'conflict', id}
  end
end
local waiting = redis.call('ZCARD', KEYS[4]) + redis.call('ZCARD', KEYS[5]) + redis.call('ZCARD', KEYS[6])
if waiting >= tonumber(ARGV[5]) then return {'full', tostring(waiting)} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'status', 'queued', 'request', ARGV[2], 'created_ms', now, 'attempt', 0, 'step', 0,
  'steps', ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[6])
redis.call('SET', KEYS[2], '1', 'EX', ARGV[7])
redis.call('ZADD', KEYS[3], time[1] * 1000000 + time[2], ARGV[1])
redis.call('EXPIRE', KEYS[3], ARGV[6])
if ARGV[4] ~= '' then redis.call('SET', KEYS[7], ARGV[1] .. ' ' .. ARGV[4], 'EX', ARGV[6]) end
return {'accepted', ARGV[1]}
