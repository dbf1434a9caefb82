-- (nothing) → queued, or → succeeded if an earlier job of the owner has drawn the same
-- KEYS  13 job  14 known  15 images  16 inputs  17 sets of the owner's waiting jobs  18 the owner's jobs
--       19 jobs watched for webhooks  20 leaving models  21 bells  then, if ARGV 14 and 15 are 1, idempotency key
--       and result
-- ARGV  3 id  4 request  5 evaluations  6 fingerprint  7 max queued  8 max queued of one owner  9 known ttl s
--       10 result ttl s  11 owner  12 priority  13 1 if there is a webhook  14 1 if there is an idempotency key
--       15 1 if an earlier result may answer  16 1 if its batch was accepted before  17 model  18 guide, or empty
--       19 origin  20 earlier job whose pictures were copied for this one ('' if none)  21 these copies, by name, as JSON
--       22 its bell  23 bells that may wait  24… pictures of the request: field, base64
-- returns {'accepted', id} | {'cached', id, ending} | {'replayed', id} | {'conflict', id} | {'full' | 'owner_full', waiting}
--       | {'leaving' | 'away', model}; away if its jobs wait for it to come back
local id, owner = ARGV[3], ARGV[11]
local idempotency = ARGV[14] == '1' and KEYS[22]
local result = ARGV[15] == '1' and KEYS[#KEYS]
if idempotency then
  local before = redis.call('GET', idempotency)
  if before then
    local cut = string.find(before, ' ', 1, true)
    -- A repeated call must write too: WAITAOF only sees writes of its own connection, and the first call's has broken.
    redis.call('EXPIRE', idempotency, unfinished_ttl)
    local first = string.sub(before, 1, cut - 1)
    if string.sub(before, cut + 1) ~= ARGV[6] then return {'conflict', first} end
    return {first == id and 'accepted' or 'replayed', first}
  end
end
-- A repeated call: the client lost its connection before the answer.
if redis.call('EXISTS', KEYS[13]) == 1 then
  redis.call('EXPIRE', KEYS[14], ARGV[9])
  if redis.call('HEXISTS', KEYS[13], 'cached') == 1 then return {'cached', id, ending(id)} end
  return {'accepted', id}
end

-- The request's pictures have a key of their own, because every poll reads the whole record.
local function keep_inputs(ttl)
  for i = 24, #ARGV, 2 do redis.call('HSET', KEYS[16], ARGV[i], ARGV[i + 1]) end
  redis.call('EXPIRE', KEYS[16], ttl)
end

-- List the job under its owner, and watch it if its end will call a webhook, for as long as a record may exist.
local function index()
  local ttl = unfinished_ttl + ARGV[10]
  redis.call('ZADD', KEYS[18], now, id)
  redis.call('ZREMRANGEBYSCORE', KEYS[18], '-inf', now - 1000 * ttl)
  redis.call('EXPIRE', KEYS[18], ttl)
  if ARGV[13] == '1' then
    redis.call('ZADD', KEYS[19], now, id)
    redis.call('EXPIRE', KEYS[19], ttl)
  end
end

-- Give the job the pictures of the earlier one. Objects are no other job's: without copies they must be drawn again.
local function take_pictures(earlier)
  local images = job_key(earlier) .. ':images'
  if earlier == ARGV[20] then
    for name, copy in pairs(cjson.decode(ARGV[21])) do redis.call('HSET', KEYS[15], name, copy) end
    return true
  end
  if string.sub(redis.call('HGET', images, '0') or '', 1, 3) == 's3 ' then return false end
  return redis.call('COPY', images, KEYS[15]) == 1
end

local earlier = result and redis.call('GET', result)
if earlier then
  local job = redis.call('HMGET', job_key(earlier), 'status', 'image_hashes', 'reproducible', 'warnings', 'flagged')
  if job[1] == 'succeeded' and take_pictures(earlier) then
    redis.call('HSET', KEYS[13], 'status', 'succeeded', 'request', ARGV[4], 'created_ms', now, 'started_ms', now,
      'finished_ms', now, 'attempt', 0, 'step', ARGV[5], 'steps', ARGV[5], 'image_hashes', job[2],
      'reproducible', job[3] or '', 'warnings', job[4] or '', 'flagged', job[5] or '',
      'cached', 1, 'owner', owner, 'origin', ARGV[19], 'model', ARGV[17])
    redis.call('EXPIRE', KEYS[13], ARGV[10])
    redis.call('EXPIRE', KEYS[15], ARGV[10])
    keep_inputs(ARGV[10])
    redis.call('SET', KEYS[14], owner, 'EX', ARGV[9])
    if idempotency then redis.call('SET', idempotency, id .. ' ' .. ARGV[6], 'EX', unfinished_ttl) end
    index()
    return {'cached', id, ending(id)}
  end
end
-- A model that finishes its jobs first finishes those of its batches too.
for _, model in ipairs({ARGV[17], ARGV[18]}) do
  local jobs = redis.call('HGET', KEYS[20], model)
  if jobs and not (jobs == 'finish' and ARGV[16] == '1') then return {jobs == 'wait' and 'away' or 'leaving', model} end
end
local waiting = waiting_jobs()
if waiting >= tonumber(ARGV[7]) then return {'full', tostring(waiting)} end
local own = 0
for _, here in ipairs(redis.call('SMEMBERS', KEYS[17])) do
  redis.call('ZREMRANGEBYSCORE', here, '-inf', now_us - unfinished_ttl * 1000000)
  local count = redis.call('ZCARD', here)
  if count == 0 then redis.call('SREM', KEYS[17], here) end
  own = own + count
end
if own >= tonumber(ARGV[8]) then return {'owner_full', tostring(own)} end
redis.call('HSET', KEYS[13], 'status', 'queued', 'request', ARGV[4], 'created_ms', now, 'created_us', now_us,
  'attempt', 0, 'step', 0, 'steps', ARGV[5], 'owner', owner, 'origin', ARGV[19], 'priority', ARGV[12],
  'model', ARGV[17],
  'turn', turn_of(LEVEL[ARGV[12]], owner, tonumber(ARGV[5])))
redis.call('EXPIRE', KEYS[13], unfinished_ttl)
keep_inputs(unfinished_ttl)
redis.call('SET', KEYS[14], owner, 'EX', ARGV[9])
enter(id, nil)
index()
if idempotency then redis.call('SET', idempotency, id .. ' ' .. ARGV[6], 'EX', unfinished_ttl) end
-- Whoever answers a bell goes on until no job waits, so further ones would wake nobody.
if redis.call('LLEN', KEYS[21]) < tonumber(ARGV[23]) then
  redis.call('LPUSH', KEYS[21], ARGV[22])
  redis.call('EXPIRE', KEYS[21], unfinished_ttl)
end
return {'accepted', id}
