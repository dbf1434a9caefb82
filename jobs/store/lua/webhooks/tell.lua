-- append a held job's news to its events; nothing if the claim is stale, or news of this number is already written
-- KEYS  1 job  2 events
-- ARGV  1 id  2 attempt  3 sequence number of the news  4 channel  5 unfinished ttl s  6 events kept
--       7… name and data of each event
-- The record's field 'told' holds the sequence number of the last news written.
-- returns told | stale
local job = redis.call('HMGET', KEYS[1], 'status', 'attempt', 'told')
if job[1] ~= 'running' or job[2] ~= ARGV[2] then return 'stale' end
if tonumber(job[3] or '0') >= tonumber(ARGV[3]) then return 'told' end
redis.call('HSET', KEYS[1], 'told', ARGV[3])
for i = 7, #ARGV, 2 do
  redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[6], '*', 'event', ARGV[i], 'data', ARGV[i + 1])
end
redis.call('EXPIRE', KEYS[2], ARGV[5])
redis.call('PUBLISH', ARGV[4], ARGV[1])
return 'told'
