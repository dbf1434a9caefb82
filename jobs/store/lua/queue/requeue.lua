-- running → queued, or → failed if its attempts are used up
-- KEYS  13 known  14 leases  15 events  16 finished channel  17 events' channel
-- ARGV  3 id  4 attempt of the holder that gives it back, or '' for the reaper, which needs an expired lease
--       5 outcome of the attempt: handed_back | lost | faulted  6 cause as JSON ('' if in good order)
--       7 back-off ms  8 max failures  9 error if they are used up  10 result ttl s  11 known ttl s
--       12 events kept
-- returns {'queued'} | {'failed', ending} | {'kept'}
local id, key = ARGV[3], job_key(ARGV[3])
if redis.call('HGET', key, 'status') ~= 'running' then
  if ARGV[4] == '' then redis.call('ZREM', KEYS[14], id) end
  return {'kept'}
end
local attempt = redis.call('HGET', key, 'attempt')
if ARGV[4] == '' then
  local lease = redis.call('ZSCORE', KEYS[14], id)
  if lease and tonumber(lease) > now then return {'kept'} end
elseif attempt ~= ARGV[4] then
  return {'kept'}
end
redis.call('ZREM', KEYS[14], id)
end_attempt(id, attempt, ARGV[5], ARGV[6])
-- Handing a job back in good order is no failure, so the attempt does not count.
local failures = ARGV[5] == 'handed_back' and 0 or redis.call('HINCRBY', key, 'failures', 1)
if failures >= tonumber(ARGV[8]) then
  redis.call('HSET', key, 'status', 'failed', 'error', ARGV[9], 'finished_ms', now)
  redis.call('EXPIRE', key, ARGV[10])
  redis.call('EXPIRE', key .. ':inputs', ARGV[10])
  redis.call('EXPIRE', KEYS[15], ARGV[10])
  redis.call('EXPIRE', KEYS[13], ARGV[11])
  redis.call('PUBLISH', KEYS[16], id)
  return {'failed', ending(id)}
end
redis.call('HSET', key, 'status', 'queued', 'step', 0, 'queued_ms', now)
redis.call('HDEL', key, 'started_ms')
redis.call('EXPIRE', key, unfinished_ttl)
redis.call('EXPIRE', key .. ':inputs', unfinished_ttl)
local due = tonumber(ARGV[7]) > 0 and now + ARGV[7] or nil
if due then redis.call('HSET', key, 'not_before_ms', due) end
enter(id, due)
redis.call('XADD', KEYS[15], 'MAXLEN', ARGV[12], '*', 'event', 'status', 'data',
  '{"status":"queued","attempt":' .. attempt .. '}')
redis.call('EXPIRE', KEYS[15], unfinished_ttl)
redis.call('PUBLISH', KEYS[17], id)
return {'queued'}
