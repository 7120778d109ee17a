#!lua flags=allow-oom
-- The job that has a claim: its id and its record. KEYS: the claim. ARGV: what a job's key begins with.
local holder = redis.call('GET', KEYS[1])
if holder then
  confirm(KEYS[1], holder)
  return {holder, redis.call('HGETALL', ARGV[1] .. holder)}
end
return {}
