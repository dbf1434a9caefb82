-- (nothing) → receiving, or an earlier batch of the same idempotency key
-- KEYS  1 batch  2 idempotency key (the batch again if there is none)
-- ARGV  1 id  2 owner  3 token of this upload, which takes over from earlier ones  4 ttl s
--       5 prefix of a batch's key
-- returns the batch's id
if KEYS[2] ~= KEYS[1] then
  local earlier = redis.call('GET', KEYS[2])
  if earlier and redis.call('EXISTS', ARGV[5] .. earlier) == 1 then
    redis.call('HSET', ARGV[5] .. earlier, 'upload', ARGV[3])
    return earlier
  end
  redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[4])
end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'status', 'receiving', 'owner', ARGV[2], 'upload', ARGV[3], 'total', 0, 'fed', 0,
  'created_ms', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('EXPIRE', KEYS[1], ARGV[4])
return ARGV[1]
