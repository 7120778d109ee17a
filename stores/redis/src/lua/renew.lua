#!lua flags=allow-oom
-- Renews the lease of a node, for all its jobs.
-- KEYS: leases, fenced nodes. ARGV: the node, and the milliseconds that a lease lasts.
-- Gives the server's time in milliseconds, whether the node has its lease, and the nodes whose leases
-- are over.
local leases, fenced = KEYS[1], KEYS[2]
local time = clock()
redis.call('ZREMRANGEBYSCORE', fenced, '-inf', time - FENCED)
-- The clock was set back: who does not renew its lease from now on is dead a lease from now.
for _, node in ipairs(redis.call('ZRANGEBYSCORE', leases, '(' .. time, '+inf')) do
  redis.call('ZADD', leases, time, node)
end
local has_lease = redis.call('ZSCORE', fenced, ARGV[1]) == false
if has_lease then
  redis.call('ZADD', leases, time, ARGV[1])
end
return {time, has_lease and 1 or 0, redis.call('ZRANGEBYSCORE', leases, '-inf', '(' .. time - ARGV[2], 'LIMIT', 0, 100)}
