-- running → succeeded | failed
-- KEYS  13 images  14 known  15 leases  16 result  17 events  18 finished channel
--       19 recent
-- ARGV  3 id  4 attempt  5 new status  6 error ('' if none)  7 image hashes  8 result ttl s  9 known ttl s
--       10 reproducible  11 sheet ('' if none)  12 telemetry ('' if none)  13 warnings ('' if none)
--       14 flagged ('' if none)  15… pictures; like the sheet, each is its bytes or 's3 ' and where they are
-- returns {'moved', ending, the model's waiting jobs} | {'stale'} | {'gone'}
local id, key = ARGV[3], job_key(ARGV[3])
local job = redis.call('HMGET', key, 'status', 'attempt', 'started_ms', 'steps', 'image_hashes', 'error',
  'created_ms')
if not job[1] then return {'gone'} end
-- A repeated call: the worker lost its connection before the answer.
if job[1] == ARGV[5] and job[2] == ARGV[4] and job[5] == ARGV[7] and job[6] == ARGV[6] then
  return {'moved', ending(id), waiting_jobs()}
end
if job[1] ~= 'running' or job[2] ~= ARGV[4] then return {'stale'} end
redis.call('HSET', key, 'status', ARGV[5], 'error', ARGV[6], 'image_hashes', ARGV[7], 'finished_ms', now)
if ARGV[5] == 'succeeded' then
  redis.call('HSET', key, 'step', job[4], 'reproducible', ARGV[10], 'telemetry', ARGV[12],
    'warnings', ARGV[13], 'flagged', ARGV[14])
  redis.call('SET', KEYS[16], id, 'EX', ARGV[8])
end
for i = 15, #ARGV do redis.call('HSET', KEYS[13], i - 15, ARGV[i]) end
if ARGV[11] ~= '' then redis.call('HSET', KEYS[13], 'sheet', ARGV[11]) end
end_attempt(id, job[2], ARGV[5], ARGV[6])
redis.call('EXPIRE', key, ARGV[8])
redis.call('EXPIRE', key .. ':inputs', ARGV[8])
redis.call('EXPIRE', KEYS[13], ARGV[8])
redis.call('EXPIRE', KEYS[17], ARGV[8])
redis.call('EXPIRE', KEYS[14], ARGV[9])
redis.call('ZREM', KEYS[15], id)
redis.call('PUBLISH', KEYS[18], id)
if ARGV[5] ~= 'succeeded' then return {'moved', ending(id), waiting_jobs()} end
-- The model's pace: jobs, pictures, evaluations and summed run times, over the time in which any job ran. Old work decays by a
-- factor of e per minute of that time. Failed jobs do not count: the number of their evaluations is not known.
local pace = redis.call('HMGET', KEYS[12], 'jobs', 'work', 'busy_ms', 'ran_ms', 'last_ms', 'pictures')
for i = 1, 6 do pace[i] = tonumber(pace[i] or '0') end
local busy = math.max(0, now - math.max(pace[5], tonumber(job[3])))
local ran = math.max(0, now - tonumber(job[3]))  -- negative if the clock was set back
local fade = math.exp(-busy / 60000)
redis.call('HSET', KEYS[12], 'jobs', pace[1] * fade + 1, 'work', pace[2] * fade + tonumber(job[4]),
  'busy_ms', pace[3] * fade + busy, 'ran_ms', pace[4] * fade + ran, 'last_ms', now,
  'pictures', pace[6] * fade + #ARGV - 14)
redis.call('EXPIRE', KEYS[12], unfinished_ttl)
redis.call('LPUSH', KEYS[19], string.format('%.0f %.0f %.0f %d', now, math.max(0, job[3] - job[7]), ran, #ARGV - 14))
redis.call('LTRIM', KEYS[19], 0, 255)  -- MAX_JOBS of recent.py
redis.call('EXPIRE', KEYS[19], 3600)
return {'moved', ending(id), waiting_jobs()}
