#!lua flags=allow-oom
-- Begins the durable job of a policy that is due first.
-- KEYS: the queue, fences, and what this very call has taken, if it was made before.
-- ARGV: the node, what a job's key begins with, the command and channel to tell of it.
-- Gives {} if none is due, {'fenced'} if its node is, or {id, record, request}.
local waiting, fences, taken = unpack(KEYS)
local node, jobs, how = ARGV[1], ARGV[2], {command = ARGV[3], channel = ARGV[4]}
local function answer(id)
  -- One that is of another type is as good as lost: whoever runs the job ends it.
  local kept = redis.pcall('GET', request(jobs .. id, id))
  return {id, redis.call('HGETALL', jobs .. id), type(kept) == 'string' and kept}
end
local before = redis.call('GET', taken)
if before then
  local job = load(jobs .. before)
  if job and job.running and job.node == node and not is_fenced(fences, node) then
    -- The answer was lost.
    return answer(before)
  end
  -- It has ended, or is another node's by now.
  redis.call('DEL', taken)
end
if is_fenced(fences, node) then
  return {'fenced'}
end
while true do
  local id = redis.call('ZRANGEBYSCORE', waiting, '-inf', clock(), 'LIMIT', 0, 1)[1]
  if not id then
    return {}
  end
  redis.call('ZREM', waiting, id)
  local job = load(jobs .. id)
  if job and job.queued then
    set(job, 's', 'running')
    set(job, 'b', time(job))
    set(job, 'a', math.min(job.attempt + 1, 65535))
    set(job, 'y', node)
    count(job)
    redis.call('HSET', job.key, unpack(job.fields))
    redis.call('SADD', runs(job.key, node), id)
    redis.call('SET', taken, id, 'PX', 600000)
    tell(how, id, job.version, job.version)
    return answer(id)
  end
end
