#!lua
-- Keeps a new job and its claim, or gives the job that has the claim.
-- KEYS: job, index, counts, fences, and the claim if there is one.
-- ARGV: the job's id, its node, the name of its policy, the number of the call, then the record's
-- fields and values.
-- Gives {} if it is kept, {'known'} if its id is, {'fenced'} if its node is, or {id, record} of the job
-- with the claim.
local job, index, counts, fences, claim = unpack(KEYS)
local id, node, policy = ARGV[1], ARGV[2], ARGV[3]
if is_fenced(fences, node) then
  return {'fenced'}
end
sweep(index, counts, 8)
local refused = admit(job, id, claim, node, ARGV[4])
if refused then
  return refused
end
-- First: they fail where these are damaged, and what a script that fails has done stays done.
list(job, id, node)
redis.call('HINCRBY', counts, 'j' .. policy, 1)
keep_claim(claim, id)
redis.call('HSET', job, 'y', node, unpack(ARGV, 5))
return {}
