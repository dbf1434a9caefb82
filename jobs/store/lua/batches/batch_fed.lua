-- running → running: the next line has become a job
-- KEYS  1 batch  2 its jobs, in order  3 its jobs that have not ended  4 lines  5 running batches
-- ARGV  1 line, from 0  2 job  3 ttl s
-- returns ok | before (the line had already become a job) | cancelled | gone
local batch = redis.call('HMGET', KEYS[1], 'status', 'fed')
if not batch[1] then return 'gone' end
if batch[1] ~= 'running' then return 'cancelled' end
if batch[2] ~= ARGV[1] then return 'before' end
redis.call('HINCRBY', KEYS[1], 'fed', 1)
redis.call('RPUSH', KEYS[2], ARGV[2])
redis.call('SADD', KEYS[3], ARGV[2])
for i = 1, 5 do redis.call('EXPIRE', KEYS[i], ARGV[3]) end
return 'ok'
