#!lua flags=allow-oom
-- Undoes an insertion: forgets the job, its outcome and its claim, unless another request was given the
-- job, or it has a claim and was begun. Gives whether it is gone.
-- KEYS: job, outcome, index, counts. ARGV: the job's id, the command and channel to tell of it, the node
-- that takes it back, the number of its call, and the former names of the node.
local key, outcome, index, counts = unpack(KEYS)
local id = ARGV[1]
local job = load(key)
if not job then
  forbid(key, ARGV[5], {ARGV[4], unpack(ARGV, 6)})
  return 1
end
local has_begun = not job.queued or job.attempt > 0
if job.disclosed or (job.claim and has_begun) then
  return 0
end
if job.claim then
  redis.call('DEL', base(key) .. 'c:' .. job.claim)
end
-- What is damaged keeps no job from being undone.
if job.node then
  redis.pcall('SREM', runs(key, job.node), id)
end
forget_take(job)
if job.attempts > 0 then
  redis.pcall('ZREM', queue(key, job.policy), id)
end
redis.call('DEL', key, outcome, request(key, id))
redis.call('ZREM', index, entry(id, job.policy, job.bytes))
uncount(counts, job.policy, job.bytes)
tell({command = ARGV[2], channel = ARGV[3]}, id)
return 1
