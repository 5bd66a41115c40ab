-- The answer to a turn that was taken before: the reply was lost, or it was asked for twice. The
-- same events, those that are still under the same tokens, under a lease that starts anew. But
-- not for ever: who asks again after a whole lease may be unable to receive them, and others
-- are not. And no more than ARGV[6] allows: what is over that many bytes is released at once.
--
-- `done` is what the turn has remembered: its results, when the node was heard of before it
-- where that was news, how often it had been asked for, the first token, the number of claims,
-- and the ids of those and of what it buried, as <length>:<text>. Returns the reply of the turn,
-- or nil when somebody else has written that.
local function answer_again(done)
  local node, lease, flags = ARGV[3], tonumber(ARGV[5]), ARGV[6]
  local asked = tonumber(string.match(flags, '^%a*(%d+)') or 0)
  local most, strict = string.match(flags, ',(%d+)(!?)')
  most = tonumber(most or math.huge)
  local results, before, last, token, ids, texts =
    string.match(done, '^(%w*);(%d*);(%d+);(%d+);(%d+);(.*)$')
  local list, at = {}, 1
  while at <= #(texts or '') do
    local length, start = string.match(texts, '^(%d+):()', at)
    if not length or #length > 9 then break end
    list[#list + 1] = string.sub(texts, start, start + length - 1)
    at = start + length
  end
  local first
  first, ids = tonumber(token), tonumber(ids)
  if not ids or ids > #list or first > 9e15 then return nil end
  -- A token is the time of its claim, or one more than the token before. What was answered
  -- to a later try may have been received: then this one has come too late to say otherwise.
  local latest = asked > tonumber(last)
  local impatient = latest and NOW > first + lease
  -- Redis allows this when it is out of memory, and with it what follows.
  redis.call('ZREM', PROMISE, '')
  local reply, claims, back, bytes = {''}, 0, 0, 0
  for i = 1, ids do
    local id = list[i]
    local held, attempt, due, cancelled = parse_lease(redis.call('HGET', LEASE, id))
    if held == digits(first + i - 1) then
      local size = redis.call('HSTRLEN', BODY, id)
      local fits = bytes + size <= most or (claims == 0 and strict ~= '!')
      local running = tonumber(redis.call('ZSCORE', DUE, id) or 0) > NOW
      if latest and not cancelled and (impatient and running or not fits) then
        release(id, attempt, due)
        back = back + 1
      elseif fits then
        bytes = bytes + size
        redis.call('ZADD', DUE, 'XX', digits(NOW + lease), id)
        local body = redis.call('HGET', BODY, id) or ''
        claims = claims + 1
        reply[#reply + 1] = table.concat(
          {held, digits(attempt), due, digits(#id), digits(#body)}, ',') .. '|' .. id .. body
      end
    end
  end
  for i = ids + 1, #list do reply[#reply + 1] = digits(#list[i]) .. ':' .. list[i] end
  if back > 0 then
    -- Somebody else, if there is anybody.
    redis.call('ZREM', ROSTER, node)
    redis.call('ZREM', PROMISE, node)
    rouse(first_due(), back)
  end
  if string.find(flags, 'e', 1, true) then tell('echo', node) end
  if latest then
    remember(table.concat({results, before, digits(asked), token, digits(ids), texts}, ';'))
  end
  -- It stays what the first try has written, for a third may yet be on its way.
  local heard = redis.call('ZSCORE', ALIVE, node) or ''
  -- Who knows that has had this answer, and is not told again.
  if heard ~= '' and tonumber(heard) == tonumber(ARGV[7]) then before = '' end
  reply[1] = table.concat({digits(NOW), '0', '1', results, heard, before, '', digits(claims),
    digits(math.floor((#list - ids) / 2)), '0'}, ';') .. '|'
  return table.concat(reply)
end
