#!lua flags=allow-oom
-- The durable jobs of a partition that were given up: ids and records.
-- KEYS: those that were. ARGV: what a job's key begins with, and how many are wanted.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. clock())
local found = {}
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, ARGV[2] - 1)) do
  found[#found + 1] = id
  found[#found + 1] = redis.call('HGETALL', ARGV[1] .. id)
end
return found
