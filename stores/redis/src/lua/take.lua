#!lua flags=allow-oom
-- Begins the durable job of a policy that is due first.
-- KEYS: the queue, and fences.
-- ARGV: the node, what a job's key begins with, the command and channel to tell of it, and the call. A
-- call whose answer was lost is made again under the same name. What it has taken is noted under that name
-- for as long as the job runs, and the job has the name in its field `u`, so that whatever ends its run
-- drops the note as well: an answer can be lost for longer than any time that could be chosen here.
-- Gives {} if none is due, {'later'} if only jobs of later releases are, {'fenced'} if its node is,
-- {'unreadable', id} if the first that is due has a record that this node cannot read, or
-- {id, record, request}.
local waiting, fences = unpack(KEYS)
local node, jobs, how = ARGV[1], ARGV[2], {command = ARGV[3], channel = ARGV[4]}
local call, taken = ARGV[5], taken_by(jobs, ARGV[5])
local function answer(id)
  -- One that is of another type is as good as lost: whoever runs the job ends it.
  local kept = redis.pcall('GET', request(jobs .. id, id))
  return {id, redis.call('HGETALL', jobs .. id), type(kept) == 'string' and kept}
end
local before = redis.call('GET', taken)
if before then
  local is_readable, job = pcall(load, jobs .. before)
  if is_readable and job and job.running and job.node == node and not is_fenced(fences, node) then
    -- The answer was lost.
    return answer(before)
  end
  -- It has ended, or is another node's by now.
  redis.call('DEL', taken)
end
if is_fenced(fences, node) then
  return {'fenced'}
end
-- So many jobs of later releases are passed over to come to one of this release, or before.
local MOST_SKIPPED = 100
local skipped = 0
while true do
  local id, left = first_due(waiting, skipped)
  if not id or left > 0 or skipped == MOST_SKIPPED then
    return skipped > 0 and {'later'} or {}
  end
  local is_readable, job = pcall(function()
    local job = load(jobs .. id)
    if job and job.queued then
      set(job, 's', 'running')
      set(job, 'b', time(job))
      set(job, 'a', math.min(job.attempt + 1, 65535))
      set(job, 'y', node)
      set(job, 'u', call)
      count(job)
      return job
    end
  end)
  if not is_readable and string.find(tostring(job), LATER, 1, true) then
    skipped = skipped + 1
  elseif not is_readable then
    return {'unreadable', id}
  else
    if job then
      -- First: it fails where the list is none, and what a script that fails has done stays done.
      list(job.key, id, node)
    end
    redis.call('ZREM', waiting, id)
  end
  if is_readable and job then
    redis.call('HSET', job.key, unpack(job.fields))
    redis.call('SET', taken, id)
    tell(how, id, job.version, job.version)
    return answer(id)
  end
end
