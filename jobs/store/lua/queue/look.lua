-- a job as it is; if it is open, also what its place in the queue and its time left follow from
-- KEYS  1 job  2 known
-- ARGV  1 prefix of every key  2 id  3 ms of waiting that raise a job by one priority
-- Further keys are derived, as in the queue scripts: {p}turns, {p}queue and {p}pace of its model.
-- returns {record, ms since 1970, jobs that start before it (-1: it does not wait for its turn), pace} | {record} of a
--       job that has ended | {owner} of one that is no longer kept | {nil} if there never was one
local prefix, id = ARGV[1], ARGV[2]
local record = redis.call('HGETALL', KEYS[1])
if #record == 0 then return {redis.call('GET', KEYS[2])} end
local job = {}
for i = 1, #record, 2 do job[record[i]] = record[i + 1] end
if job.status ~= 'queued' and job.status ~= 'running' then return {record} end
local model = job.model or cjson.decode(job.request).model
local place = -1
local rank = job.status == 'queued' and redis.call('ZRANK', prefix .. 'turns:' .. model .. ':' .. job.priority, id)
if rank then
  place = rank
  for priority, other in pairs(LEVEL) do
    if priority ~= job.priority then
      local older_than_us = 1000 * (job.created_ms + (LEVEL[job.priority] - other) * ARGV[3])
      place = place + redis.call('ZCOUNT', prefix .. 'queue:' .. model .. ':' .. priority, '-inf',
        '(' .. string.format('%.0f', older_than_us))
    end
  end
end
local time = redis.call('TIME')
return {record, time[1] * 1000 + math.floor(time[2] / 1000), place,
  redis.call('HMGET', prefix .. 'pace:' .. model, 'jobs', 'pictures', 'work', 'busy_ms', 'ran_ms')}
