-- emptying → emptying: the worker must finish other jobs before it can run the suspect that waits for it
-- KEYS  1 quarantine  2 suspects
-- ARGV  1 worker  2 lease ms
-- returns 1 | 0 if no suspect waits any longer, or another worker empties itself
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
local keeper = redis.call('GET', KEYS[1])
if keeper and keeper ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
