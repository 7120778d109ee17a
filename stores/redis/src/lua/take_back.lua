#!lua flags=allow-oom
-- Forgets a job, its outcome and its claim.
-- KEYS: job, outcome, index, counts. ARGV: the job's id, the command and channel to tell of it.
local job, outcome, index, counts = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local found = redis.call('HMGET', job, 's', 'k', 'p', 'n')
local status, claim, policy, bytes = unpack(found)
if not status then
  return
end
policy, bytes = policy or '', bytes or '0'
if claim then
  redis.call('DEL', base(job) .. 'c:' .. string.match(claim, '"key":"(%x+)"'))
end
redis.call('DEL', job, outcome)
redis.call('ZREM', index, entry(ARGV[1], policy, bytes))
uncount(counts, policy, bytes)
tell(ARGV[2], ARGV[3], ARGV[1])
