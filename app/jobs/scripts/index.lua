-- a job that was just accepted → found by its owner, and watched where its end is to be told to a webhook
-- KEYS  1 job  2 the owner's jobs  3 jobs watched for webhooks
-- ARGV  1 id  2 ttl s  3 1 where there is a webhook
-- returns 1 | 0 where no such job was accepted
local created = redis.call('HGET', KEYS[1], 'created_ms')
if not created then return 0 end
redis.call('ZADD', KEYS[2], created, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', created - 1000 * ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
if ARGV[3] == '1' then
  redis.call('ZADD', KEYS[3], created, ARGV[1])
  redis.call('EXPIRE', KEYS[3], ARGV[2])
end
return 1
