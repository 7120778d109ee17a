#!lua flags=allow-oom
-- Gives a lease to each of these nodes that has none: one that does not renew it is dead a lease from now.
-- KEYS: leases. ARGV: the nodes.
local time = clock()
for _, node in ipairs(ARGV) do
  redis.call('ZADD', KEYS[1], 'NX', time, node)
end
