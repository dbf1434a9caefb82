-- charge pictures and evaluations to an owner's quotas of the day, both or neither
-- KEYS  1 pictures of the day  2 evaluations of the day  3 token of this call
-- ARGV  1 pictures  2 evaluations  3 limit of pictures ('' for none)  4 limit of evaluations ('' for none)
-- returns {'charged', 0}, or the exhausted quota and what is left of it: {'pictures' | 'evaluations', left}
-- A repeated call: the client lost its connection before the answer.
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
