-- Applies a change to a job, if its status allows it: the table of transitions that is drawn in
-- tower-offload (src/job/record.rs).
-- KEYS: job, outcome, index, counts, fences, and where chunks of an outcome were put, if they were.
-- ARGV: the job's id, the command and channel to tell of it, the node that changes it, the change, and
-- what it brings:
--   start; progress, PROGRESS; response, STATUS, HTTP STATUS, BYTES, OUTCOME or nothing;
--   failure, FAILURE, and the attempt that it ends where that is known; cancel; remove.
-- Gives {} if there is no such job, or {whether it was applied, record}.
local key, outcome, index, counts, fences, chunks = unpack(KEYS)
local id, node, change = ARGV[1], ARGV[4], ARGV[5]
local how = {command = ARGV[2], channel = ARGV[3]}
local job = load(key)
if not job then
  return {}
end

-- Its node was taken for dead, and its jobs are ended one after the other; this one's turn is now.
if job.open and job.node and is_fenced(fences, job.node) then
  return {0, lose(job, id, index, how, 'node_lost', backoff(job.attempt))}
end

-- A durable job that was begun may be another node's by now, or nobody's: what this one has to say of it
-- comes too late.
local is_its_nodes = change ~= 'cancel' and change ~= 'remove'
if is_its_nodes and job.attempt > 0 and job.node ~= node then
  return {0, redis.call('HGETALL', key)}
end
-- The same call was made before, and is carried out only now: the job is in its next attempt.
if change == 'failure' and ARGV[7] and tonumber(ARGV[7]) ~= job.attempt then
  return {0, redis.call('HGETALL', key)}
end

local allowed = job.open
if change == 'start' then
  allowed = job.queued
elseif change == 'progress' then
  allowed = job.running
elseif change == 'remove' then
  allowed = not job.open and not job.removed
end
if not allowed then
  if chunks then
    redis.call('UNLINK', chunks)
  end
  return {0, redis.call('HGETALL', key)}
end

if change == 'response' then
  -- First, since it fails where the chunks are gone: then nothing was changed.
  if chunks then
    redis.call('RENAME', chunks, outcome)
  else
    redis.call('SET', outcome, ARGV[9])
  end
  job.bytes = ARGV[8]
  set(job, 's', ARGV[6])
  set(job, 'h', ARGV[7])
  set(job, 'n', job.bytes)
  local record, expires = finish(job, id, index, how)
  redis.call('PEXPIREAT', outcome, expires)
  -- Last: an end that fails before is written again, and counts once.
  redis.call('HINCRBY', counts, 'b' .. job.policy, job.bytes)
  return {1, record}
elseif change == 'failure' and (ARGV[6] == 'interrupted' or ARGV[6] == 'node_lost') then
  return {1, lose(job, id, index, how, ARGV[6], 0)}
elseif change == 'failure' then
  set(job, 's', 'failed')
  set(job, 'f', ARGV[6])
  local record = finish(job, id, index, how)
  return {1, record}
elseif change == 'cancel' then
  set(job, 's', 'canceled')
  local record = finish(job, id, index, how)
  return {1, record}
end

if change == 'start' then
  set(job, 's', 'running')
  set(job, 'b', time(job))
elseif change == 'progress' then
  set(job, 'g', ARGV[6])
elseif change == 'remove' then
  set(job, 'x', 'true')
  redis.call('DEL', outcome)
  redis.call('HDEL', key, 'n')
  local before = entry(id, job.policy, job.bytes)
  local expires = redis.call('ZSCORE', index, before)
  if expires and job.bytes ~= '0' then
    less(counts, 'b' .. job.policy, job.bytes)
    redis.call('ZREM', index, before)
    redis.call('ZADD', index, expires, entry(id, job.policy, '0'))
  end
end
count(job, change == 'progress')
redis.call('HSET', key, unpack(job.fields))
tell(how, id, job.version, redis.call('HGET', key, 'w'))
return {1, redis.call('HGETALL', key)}
