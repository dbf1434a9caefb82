-- Shared by the queue scripts; the store prepends it to each of them.
-- KEYS  1-3 the model's queues by age, high priority first  4-6 the same by turn  7-9 each owner's next turn
--       10 in back-off  11 suspects  12 pace
-- Further keys are derived: {p}job:ID from an id in a queue, {p}waits:OWNER from its record, and 7-9 with the suffix
-- :taken or :waiting:OWNER. All keys of a deployment live in one Redis.
-- ARGV  1 prefix of every key  2 unfinished ttl s
--
-- Turns are start tags (Goyal, Vin & Cheng 1996, start-time fair queueing): an owner's next job starts where the cost
-- (evaluations) of its previous one ended, or at the queue's virtual clock, if that is later. The clock is the tag of
-- the last job that was started; each arrival advances it by 1/1024, so that of two new owners the first goes first.
--
-- A job with FEW_AFTER failures shares its worker with at most FEW suspects; one with ALONE_AFTER runs alone.
local FEW_AFTER, FEW, ALONE_AFTER = 2, 8, 3
local prefix, unfinished_ttl = ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)

local function job_key(id) return prefix .. 'job:' .. id end

local function turn_of(level, owner, work)
  local clock = tonumber(redis.call('HGET', KEYS[12], 'clock' .. level) or '0')
  local turn = math.max(clock, tonumber(redis.call('ZSCORE', KEYS[6 + level], owner) or '0'))
  redis.call('ZADD', KEYS[6 + level], turn + work, owner)
  redis.call('HSET', KEYS[12], 'clock' .. level, clock + 1 / 1024)
  return turn
end

-- The set of an owner's waiting jobs of this model and priority.
local function waiting_here(level, owner) return KEYS[6 + level] .. ':waiting:' .. owner end

-- The number of the model's waiting jobs.
local function waiting_jobs()
  local waiting = redis.call('ZCARD', KEYS[10]) + redis.call('ZCARD', KEYS[11])
  for level = 1, 3 do waiting = waiting + redis.call('ZCARD', KEYS[level]) end
  return waiting
end

-- Put a waiting job where its record says: in back-off if it is due later, among the suspects if it has failed
-- FEW_AFTER times, and otherwise at its turn.
local function enter(id, due)
  local job = redis.call('HMGET', job_key(id), 'priority', 'created_us', 'turn', 'failures', 'owner')
  if not job[1] then return end
  local level = LEVEL[job[1]]
  local waits, here = prefix .. 'waits:' .. job[5], waiting_here(level, job[5])
  if due then
    redis.call('ZADD', KEYS[10], due, id)
  elseif tonumber(job[4] or '0') >= FEW_AFTER then
    -- Suspects that may share a worker come first; the score has no other meaning.
    redis.call('ZADD', KEYS[11], tonumber(job[4]) >= ALONE_AFTER and job[2] + 1e16 or job[2], id)
  else
    redis.call('ZADD', KEYS[level], job[2], id)
    redis.call('ZADD', KEYS[3 + level], job[3], id)
  end
  redis.call('ZADD', here, job[2], id)
  redis.call('SADD', waits, here)
  for _, key in ipairs({waits, here, KEYS[level], KEYS[3 + level], KEYS[6 + level], KEYS[10], KEYS[11], KEYS[12]}) do
    redis.call('EXPIRE', key, unfinished_ttl)
  end
end

-- Remove a job that no longer waits from every place where it may be.
local function leave(id)
  for level = 1, 3 do
    redis.call('ZREM', KEYS[level], id)
    redis.call('ZREM', KEYS[3 + level], id)
  end
  redis.call('ZREM', KEYS[10], id)
  redis.call('ZREM', KEYS[11], id)
  local job = redis.call('HMGET', job_key(id), 'owner', 'priority')
  if job[1] then
    redis.call('ZREM', prefix .. 'waiting:' .. job[1], id)  -- where earlier versions count them
    redis.call('ZREM', waiting_here(LEVEL[job[2]], job[1]), id)
  end
end

-- Virtual finish time of the owner's last *started* job: service received, not merely requested.
local function taken_until(level) return KEYS[6 + level] .. ':taken' end

-- Most jobs that a worker may hold, this one included; 0 for an ordinary job: no limit.
local function most_held_with(id)
  local failures = tonumber(redis.call('HGET', job_key(id), 'failures') or '0')
  return failures >= ALONE_AFTER and 1 or failures >= FEW_AFTER and FEW or 0
end

-- What the log says of a job that has ended.
local function ending(id)
  return redis.call('HMGET', job_key(id), 'status', 'error', 'attempt', 'step', 'created_ms', 'queued_ms', 'started_ms',
    'finished_ms', 'image_hashes', 'cached', 'origin')
end

-- Record the end of an attempt in the job's history; error is JSON or ''.
local function end_attempt(id, attempt, outcome, error)
  local field = 'attempt:' .. attempt
  local entry = redis.call('HGET', job_key(id), field)
  if not entry then return end
  redis.call('HSET', job_key(id), field, string.sub(entry, 1, -2) .. ',"ended_ms":' .. string.format('%.0f', now)
    .. ',"outcome":"' .. outcome .. '"' .. (error ~= '' and ',"error":' .. error or '') .. '}')
end
