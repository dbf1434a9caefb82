-- pictures and evaluations onto an owner's day, all or nothing
-- KEYS  1 pictures of the day  2 evaluations of the day  3 this call, by its token
-- ARGV  1 pictures  2 evaluations  3 pictures a day ('' for no limit)  4 evaluations a day ('' for no limit)
-- returns {'charged' | 'pictures' | 'evaluations', left}
-- This very call again, by a client whose connection broke before the answer.
if redis.call('EXISTS', KEYS[3]) == 1 then return {'charged', 0} end
local names = {'pictures', 'evaluations'}
for i = 1, 2 do
  local left = ARGV[i + 2] ~= '' and ARGV[i + 2] - (redis.call('GET', KEYS[i]) or 0)
  if left and tonumber(ARGV[i]) > left then return {names[i], math.max(0, left)} end
end
for i = 1, 2 do
  redis.call('INCRBY', KEYS[i], ARGV[i])
  redis.call('EXPIRE', KEYS[i], 172800)
end
redis.call('SET', KEYS[3], 1, 'EX', 60)
return {'charged', 0}
