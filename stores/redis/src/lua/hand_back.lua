#!lua flags=allow-oom
-- Ends a job that is its node's here and that its process does not run, or queues it again.
-- KEYS: job, the ids of those that run on the node, index.
-- ARGV: the job's id, the command and channel to tell of it, the node, the attempt that was seen, and why
-- the job has failed if it has no attempts left: 'interrupted' where nobody has received it.
-- Gives whether it was handed back. One that has ended, or is another node's, only leaves the ids.
local key, running, index = unpack(KEYS)
local id, node = ARGV[1], ARGV[4]
local job = load(key)
if not job or not job.open or job.node ~= node then
  redis.call('SREM', running, id)
  return 0
end
-- It has been taken again since.
if job.attempt ~= tonumber(ARGV[5]) then
  return 0
end
if ARGV[6] == 'interrupted' and job.attempts > 0 then
  -- No handler ran, so this attempt is not one of those that it may have. Its number stays: by that it is
  -- told from the next one.
  job.attempts = math.min(job.attempts + 1, 65535)
  set(job, 'm', job.attempts)
end
lose(job, id, index, {command = ARGV[2], channel = ARGV[3]}, ARGV[6], 0)
return 1
