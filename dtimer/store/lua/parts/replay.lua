-- Reply again to a claim: its first reply was lost, or the node sent the claim twice.
--
-- The reply has those events of the first reply that the node still holds under the same tokens.
-- Their leases start over. If a whole lease has passed since the claim was first answered, and a
-- later reply has renewed the leases, the node may be unable to receive the events, so they are
-- released for other nodes. Events that exceed the limit of bytes in `flags` are released at once.
--
-- done        what was remembered: '<results>;<before>;<resends>;<first token>;<claims>;<texts>'.
--             <results> and <before> are those of the first reply. <resends> is how many times the
--             claim had been sent before the copy that was answered last. <first token> is the
--             token of the first claimed event; each further event has the next number. <claims> is
--             how many events were claimed. <texts> is '<length>:<text>' of each claimed id, then
--             of id and reason of each event that was buried
-- node, lease, flags, last_heard
--             the arguments node, lease, flags and heard of lua/claim.lua. If `!` follows the limit
--             of bytes in `flags`, the limit is strict: a larger event is never returned. Else the
--             first event is returned even if it is larger
-- Returns     the reply to the claim (lua/claim.lua); nil if dtimer has not written `done`
--
-- Commands  hget hstrlen zadd zrem zscore

local function replay_claim(done, node, lease, flags, last_heard)
  local resends = tonumber(string.match(flags, '^%a*(%d+)') or 0)
  local most_bytes, strict = string.match(flags, ',(%d+)(!?)')
  most_bytes = tonumber(most_bytes or math.huge)
  local results, before, last_resends, token, claimed, texts =
    string.match(done, '^(%w*);(%d*);(%d+);(%d+);(%d+);(.*)$')
  local list, at = {}, 1
  while at <= #(texts or '') do
    local length, start = string.match(texts, '^(%d+):()', at)
    if not length or #length > 9 then break end
    list[#list + 1] = string.sub(texts, start, start + length - 1)
    at = start + length
  end
  local first_token, ids = tonumber(token), tonumber(claimed)
  if not ids or ids > #list or first_token > 9e15 then return nil end
  -- The first token is about the time at which the claim was first answered: a token is the
  -- server's time, or the previous token plus one. Release events only if no later copy of the
  -- claim was answered: the node may have the reply to that copy, and this one must not contradict
  -- it.
  local latest = resends > tonumber(last_resends)
  local lease_passed = NOW > first_token + lease
  -- Let Redis accept the later writes if it is out of memory (parts/types.lua).
  redis.call('ZREM', EXPECTED, '')
  local reply, claims, released, bytes = {''}, 0, 0, 0
  for i = 1, ids do
    local id = list[i]
    local held_token, attempt, due, cancelled = parse_lease(redis.call('HGET', LEASE, id))
    if held_token == digits(first_token + i - 1) then
      local size = redis.call('HSTRLEN', BODY, id)
      local fits = bytes + size <= most_bytes or (claims == 0 and strict ~= '!')
      local lease_runs = tonumber(redis.call('ZSCORE', DUE, id) or 0) > NOW
      if latest and not cancelled and (lease_passed and lease_runs or not fits) then
        release(id, attempt, due)
        released = released + 1
      elseif fits then
        bytes = bytes + size
        redis.call('ZADD', DUE, 'XX', digits(NOW + lease), id)
        local body = redis.call('HGET', BODY, id) or ''
        claims = claims + 1
        reply[#reply + 1] = table.concat(
          {held_token, digits(attempt), due, digits(#id), digits(#body)}, ',') .. '|' .. id .. body
      end
    end
  end
  for i = ids + 1, #list do reply[#reply + 1] = digits(#list[i]) .. ':' .. list[i] end
  if released > 0 then
    -- Take this node off the roster, so that another node is woken for the released events.
    redis.call('ZREM', ROSTER, node)
    redis.call('ZREM', EXPECTED, node)
    wake_next(first_due(), released)
  end
  if string.find(flags, 'e', 1, true) then notify('echo', node) end
  if latest then
    remember(table.concat({results, before, digits(resends), token, digits(ids), texts}, ';'))
  end
  -- Leave ALIVE as the first copy of the claim has set it, because another copy may be on its way.
  local heard = redis.call('ZSCORE', ALIVE, node) or ''
  -- If `last_heard` equals `heard`, the node has already received a reply to this claim, so leave
  -- `before` empty.
  if heard ~= '' and tonumber(heard) == tonumber(last_heard) then before = '' end
  reply[1] = table.concat({digits(NOW), '0', '1', results, heard, before, '', digits(claims),
    digits(math.floor((#list - ids) / 2)), '0'}, ';') .. '|'
  return table.concat(reply)
end
