-- Applies a change to a job, if its status allows it: the table of transitions that is drawn in
-- tower-offload (src/job/record.rs).
-- KEYS: job, outcome, index, counts, fences, and where chunks of an outcome were put, if they were.
-- ARGV: the job's id, the command and channel to tell of it, the change, and what it brings:
--   start; progress, PROGRESS; response, STATUS, HTTP STATUS, BYTES, OUTCOME or nothing;
--   failure, FAILURE; cancel; remove.
-- Gives {} if there is no such job, or {whether it was applied, record}.
local key, outcome, index, counts, fences, chunks = unpack(KEYS)
local id, change = ARGV[1], ARGV[4]
local how = {command = ARGV[2], channel = ARGV[3]}
local job = load(key)
if not job then
  return {}
end

-- Its node was taken for dead, and its jobs are ended one after the other; this one's turn is now.
if job.open and job.node and is_fenced(fences, job.node) then
  set(job, 's', 'failed')
  set(job, 'f', 'node_lost')
  local record = finish(job, id, index, how)
  return {0, record}
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
  return {0, redis.call('HGETALL', key)}
end

if change == 'response' then
  -- First, since it fails where the chunks are gone: then nothing was changed.
  if chunks then
    redis.call('RENAME', chunks, outcome)
  else
    redis.call('SET', outcome, ARGV[8])
  end
  job.bytes = ARGV[7]
  redis.call('HINCRBY', counts, 'b' .. job.policy, job.bytes)
  set(job, 's', ARGV[5])
  set(job, 'h', ARGV[6])
  set(job, 'n', job.bytes)
  local record, expires = finish(job, id, index, how)
  redis.call('PEXPIREAT', outcome, expires)
  return {1, record}
elseif change == 'failure' then
  set(job, 's', 'failed')
  set(job, 'f', ARGV[5])
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
  set(job, 'g', ARGV[5])
elseif change == 'remove' then
  set(job, 'x', 'true')
  redis.call('DEL', outcome)
  redis.call('HDEL', key, 'n')
  local before = entry(id, job.policy, job.bytes)
  local expires = redis.call('ZSCORE', index, before)
  if expires and job.bytes ~= '0' then
    redis.call('HINCRBY', counts, 'b' .. job.policy, -job.bytes)
    redis.call('ZREM', index, before)
    redis.call('ZADD', index, expires, entry(id, job.policy, '0'))
  end
end
count(job, change == 'progress')
redis.call('HSET', key, unpack(job.fields))
tell(how, id, job.version, redis.call('HGET', key, 'w'))
return {1, redis.call('HGETALL', key)}
