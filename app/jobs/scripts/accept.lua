-- (nothing) → queued, or → succeeded where an earlier job has drawn the same
-- KEYS  1 job  2 known  3 this job's queue  4-6 all queues of the model  7 idempotency (or the job key again: none)
--       8 result (or the job key again: don't look)  9 images
-- ARGV  1 id  2 request  3 steps  4 fingerprint ('' where there is no idempotency key)  5 max queued
--       6 unfinished ttl s  7 known ttl s  8 result ttl s  9 what a job's key starts with
--       10 owner
-- returns {'accepted', id} | {'cached', id} | {'replayed', id} | {'conflict', id} | {'full', waiting}
if ARGV[4] ~= '' then
  local before = redis.call('GET', KEYS[7])
  if before then
    local cut = string.find(before, ' ', 1, true)
    local id = string.sub(before, 1, cut - 1)
    if string.sub(before, cut + 1) == ARGV[4] then return {'replayed', id} end
    return {'conflict', id}
  end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local earlier = KEYS[8] ~= KEYS[1] and redis.call('GET', KEYS[8])
if earlier then
  local key = ARGV[9] .. earlier
  local found = redis.call('HMGET', key, 'status', 'image_hashes', 'reproducible')
  if found[1] == 'succeeded' and redis.call('COPY', key .. ':images', KEYS[9]) == 1 then
    redis.call('HSET', KEYS[1], 'status', 'succeeded', 'request', ARGV[2], 'created_ms', now, 'started_ms', now,
      'finished_ms', now, 'attempt', 0, 'step', ARGV[3], 'steps', ARGV[3], 'image_hashes', found[2],
      'reproducible', found[3] or '', 'cached', 1, 'owner', ARGV[10])
    redis.call('EXPIRE', KEYS[1], ARGV[8])
    redis.call('EXPIRE', KEYS[9], ARGV[8])
    redis.call('SET', KEYS[2], ARGV[10], 'EX', ARGV[7])
    if ARGV[4] ~= '' then redis.call('SET', KEYS[7], ARGV[1] .. ' ' .. ARGV[4], 'EX', ARGV[6]) end
    return {'cached', ARGV[1]}
  end
end
local waiting = redis.call('ZCARD', KEYS[4]) + redis.call('ZCARD', KEYS[5]) + redis.call('ZCARD', KEYS[6])
if waiting >= tonumber(ARGV[5]) then return {'full', tostring(waiting)} end
redis.call('HSET', KEYS[1], 'status', 'queued', 'request', ARGV[2], 'created_ms', now, 'attempt', 0, 'step', 0,
  'steps', ARGV[3], 'owner', ARGV[10])
redis.call('EXPIRE', KEYS[1], ARGV[6])
redis.call('SET', KEYS[2], ARGV[10], 'EX', ARGV[7])
redis.call('ZADD', KEYS[3], time[1] * 1000000 + time[2], ARGV[1])
redis.call('EXPIRE', KEYS[3], ARGV[6])
if ARGV[4] ~= '' then redis.call('SET', KEYS[7], ARGV[1] .. ' ' .. ARGV[4], 'EX', ARGV[6]) end
return {'accepted', ARGV[1]}
