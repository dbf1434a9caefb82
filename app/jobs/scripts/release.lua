-- running → queued, or → failed where its attempts are used up
-- KEYS  1 job  2 known  3 queue  4 leases  5 events
-- ARGV  1 id  2 attempt of the holder who hands it back, or '' for the reaper: then only a lease that ran out
--       3 max attempts  4 error where they are used up  5 unfinished ttl s  6 result ttl s  7 known ttl s  8 channel
--       9 channel of events  10 events kept
-- returns queued | failed | kept
local status = redis.call('HGET', KEYS[1], 'status')
if status ~= 'running' then
  if ARGV[2] == '' then redis.call('ZREM', KEYS[4], ARGV[1]) end
  return 'kept'
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local attempt = redis.call('HGET', KEYS[1], 'attempt')
if ARGV[2] == '' then
  local lease = redis.call('ZSCORE', KEYS[4], ARGV[1])
  if lease and tonumber(lease) > now then return 'kept' end
elseif attempt ~= ARGV[2] then
  return 'kept'
end
redis.call('ZREM', KEYS[4], ARGV[1])
if ARGV[2] ~= '' then
  -- A job that is handed back in good order has not failed: the attempt is not held against it.
  redis.call('HINCRBY', KEYS[1], 'handed_back', 1)
end
local handed_back = tonumber(redis.call('HGET', KEYS[1], 'handed_back') or '0')
if tonumber(attempt) - handed_back >= tonumber(ARGV[3]) then
  redis.call('HSET', KEYS[1], 'status', 'failed', 'error', ARGV[4], 'finished_ms', now)
  redis.call('EXPIRE', KEYS[1], ARGV[6])
  redis.call('EXPIRE', KEYS[5], ARGV[6])
  redis.call('EXPIRE', KEYS[2], ARGV[7])
  redis.call('PUBLISH', ARGV[8], ARGV[1])
  return 'failed'
end
redis.call('HSET', KEYS[1], 'status', 'queued', 'step', 0)
redis.call('HDEL', KEYS[1], 'started_ms')
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call('ZADD', KEYS[3], redis.call('HGET', KEYS[1], 'created_ms') * 1000, ARGV[1])
redis.call('EXPIRE', KEYS[3], ARGV[5])
redis.call('XADD', KEYS[5], 'MAXLEN', ARGV[10], '*', 'event', 'status', 'data',
  '{"status":"queued","attempt":' .. attempt .. '}')
redis.call('EXPIRE', KEYS[5], ARGV[5])
redis.call('PUBLISH', ARGV[9], ARGV[1])
return 'queued'
