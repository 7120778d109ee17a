#!lua flags=allow-oom
-- Ends jobs of a node, or queues them again, that was taken for dead, some at a time.
-- KEYS: the ids of those that run there, index, counts, fences. ARGV: the node, how jobs' keys begin, the
-- command and channel to tell of it. Gives those that were ended, those whose records cannot be read, and
-- whether there may be more. The unreadable stay listed: whoever ends them takes them out.
local running, index, counts, fences = unpack(KEYS)
local node, jobs, how = ARGV[1], ARGV[2], {command = ARGV[3], channel = ARGV[4]}
local time = clock()
-- From now on the node changes nothing in this partition. Other nodes of a cluster know nothing of the
-- lease, so each partition is told.
redis.call('ZADD', fences, 'NX', time, node)
redis.call('ZREMRANGEBYSCORE', fences, '-inf', time - FENCED)
-- The fence refuses its inserts from now on.
redis.call('DEL', undone_until(jobs, node))
local ids, ended, unreadable_ids, done = redis.call('SRANDMEMBER', running, 100), {}, {}, {}
for _, id in ipairs(ids) do
  -- One that is not as it should be keeps no other from its end.
  local is_readable = pcall(function()
    local job = load(jobs .. id)
    if job and job.open and job.node == node then
      lose(job, id, index, how, 'node_lost', backoff(job.attempt))
      ended[#ended + 1] = id
    end
  end)
  if is_readable then
    done[#done + 1] = id
  else
    unreadable_ids[#unreadable_ids + 1] = id
  end
end
if #done > 0 then
  redis.call('SREM', running, unpack(done))
end
local has_more = redis.call('EXISTS', running)
if has_more == 0 then
  redis.call('SREM', nodes(jobs), node)
end
return {ended, unreadable_ids, has_more}
