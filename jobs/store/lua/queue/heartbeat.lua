-- running → running; also at the memory limit, so that a full store costs no leases
-- KEYS  1 job  2 leases
-- ARGV  1 id  2 attempt  3 step  4 lease ms  5 steps
-- returns ok | stale | cancelled | gone
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return 'gone' end
if status == 'cancelled' then return 'cancelled' end
if status ~= 'running' or redis.call('HGET', KEYS[1], 'attempt') ~= ARGV[2] then return 'stale' end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'step', ARGV[3], 'steps', ARGV[5])
redis.call('ZADD', KEYS[2], time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[4], ARGV[1])
return 'ok'
