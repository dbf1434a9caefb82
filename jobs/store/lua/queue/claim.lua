-- queued → running: the model's next job
-- KEYS  13 leases  14 events' channel  15 quarantine  16 token of this call
-- ARGV  3 worker  4 token  5 jobs that the worker holds  6 lease ms  7 ms of waiting that raise a job by one priority
--       8 attempts kept in the history  9 events kept  10 1 if the worker holds suspects
-- returns {'claimed', id, attempt, request, owner, most jobs that the worker may hold with it (0 for no limit), origin,
--       ms for which it has waited}
--       | {'wait'} if the worker should empty itself for a suspect | {'nothing'}
--
-- The priority is the one whose oldest job arrived first, after adding ARGV 7 for each step below high. Within it, the
-- job with the lowest turn goes first. Suspects (jobs that have lost two workers) share a worker with a few other
-- suspects, and after one more loss run alone, so a job that kills its worker takes no ordinary job down with it.
local held = tonumber(ARGV[5])

local function answer(id)
  local job = redis.call('HMGET', job_key(id), 'attempt', 'request', 'owner', 'origin', 'started_ms', 'queued_ms',
    'created_ms')
  return {'claimed', id, tonumber(job[1]), job[2], job[3], most_held_with(id), job[4] or '',
    job[5] - (job[6] or job[7])}
end

-- A repeated call: the worker lost its connection before the answer.
local before = redis.call('GET', KEYS[16])
if before then
  local job = redis.call('HMGET', job_key(before), 'status', 'token')
  if job[1] == 'running' and job[2] == ARGV[4] then return answer(before) end
end

local function take(id)
  local key = job_key(id)
  leave(id)
  local job = redis.call('HMGET', key, 'priority', 'turn', 'steps', 'owner')
  local taken = taken_until(LEVEL[job[1]])
  redis.call('ZADD', taken, 'GT', job[2] + job[3], job[4])
  redis.call('EXPIRE', taken, unfinished_ttl)
  local attempt = redis.call('HINCRBY', key, 'attempt', 1)
  redis.call('HSET', key, 'status', 'running', 'worker', ARGV[3], 'started_ms', now, 'step', 0, 'token', ARGV[4],
    'told', 0, 'attempt:' .. attempt, '{"number":' .. attempt .. ',"started_ms":' .. string.format('%.0f', now) .. '}')
  redis.call('HDEL', key, 'not_before_ms', 'attempt:' .. (attempt - ARGV[8]))
  redis.call('ZADD', KEYS[13], now + ARGV[6], id)
  redis.call('SET', KEYS[16], id, 'PX', ARGV[6])
  redis.call('XADD', key .. ':events', 'MAXLEN', ARGV[9], '*', 'event', 'status', 'data',
    '{"status":"running","attempt":' .. attempt .. '}')
  redis.call('EXPIRE', key .. ':events', unfinished_ttl)
  redis.call('PUBLISH', KEYS[14], id)
  return answer(id)
end

-- The first id of a sorted set whose job is still queued; ids before it are stale and are removed.
local function first_of(key)
  while true do
    local id = redis.call('ZRANGE', key, 0, 0)[1]
    if not id or redis.call('HGET', job_key(id), 'status') == 'queued' then return id end
    leave(id)
    redis.call('ZREM', key, id)
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[10], '-inf', now, 'LIMIT', 0, 64)) do
  redis.call('ZREM', KEYS[10], id)
  enter(id, nil)
end

local suspect = first_of(KEYS[11])
if ARGV[10] == '1' then
  if suspect and held < most_held_with(suspect) then return take(suspect) end
  return {'nothing'}
end
if suspect then
  if held == 0 then
    redis.call('SET', KEYS[15], ARGV[3], 'PX', ARGV[6])
    return take(suspect)
  end
  local keeper = redis.call('GET', KEYS[15])
  if not keeper or keeper == ARGV[3] then
    redis.call('SET', KEYS[15], ARGV[3], 'PX', ARGV[6])
    return {'wait'}
  end
end

local chosen, chosen_due
for level = 1, 3 do
  if first_of(KEYS[level]) then
    local due = tonumber(redis.call('ZRANGE', KEYS[level], 0, 0, 'WITHSCORES')[2]) + (level - 1) * ARGV[7] * 1000
    if not chosen_due or due < chosen_due then chosen, chosen_due = level, due end
  end
end
local id = chosen and first_of(KEYS[3 + chosen])
if not id then return {'nothing'} end
local clock = math.max(tonumber(redis.call('HGET', KEYS[12], 'clock' .. chosen) or '0'),
  tonumber(redis.call('ZSCORE', KEYS[3 + chosen], id)))
redis.call('HSET', KEYS[12], 'clock' .. chosen, clock)
redis.call('EXPIRE', KEYS[12], unfinished_ttl)
for _, key in ipairs({KEYS[6 + chosen], taken_until(chosen)}) do redis.call('ZREMRANGEBYSCORE', key, '-inf', clock) end
return take(id)
