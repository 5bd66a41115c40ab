-- Decide about each candidate: claim it, leave it until it is due, let its schedule move it, bury
-- it, or remove it because it was cancelled.
--
-- Commands  hget zscore
-- Reads     ahead bodies buried candidates claimed claimed_early first_token ids last_token lease
-- Reads     leases node not_yet occurred remembered reply short tries trouble
-- Sets      claimed claimed_early first_token held lapsed last_token lateness not_yet occurred
-- Sets      scores token tried

-- No token of dtimer is as high as this. Above about 9e15, Lua cannot count in steps of one.
if last_token > 9e15 then last_token = 0 end
first_token = math.max(last_token + 1, NOW)
local token = first_token
local lease_end, latest_due, types_checked = digits(NOW + lease), NOW + ahead, false
-- The section claim/lease writes these: scores and ids, ids and leases, ids with tries, and the
-- number of events in each bucket of lateness.
local scores, held, tried, lateness = {}, {}, {}, {}
-- How many leases have run out.
local lapsed = 0
for i, id in ipairs(ids) do
  local body, score = bodies[i], candidates[2 * i]
  if occurred then
    -- An occurrence earlier in this batch may just have replaced this event. Read it again.
    score = redis.call('ZSCORE', DUE, id) or 'inf'
    body, leases[i] = redis.call('HGET', BODY, id), redis.call('HGET', LEASE, id)
    tries[i] = redis.call('HGET', TRIES, id)
  end
  local expires, max_retries, mark = parse_body(body)
  local is_occurrence = mark == 's'
  -- Of a lease that has ended; `old_token` is nil if there is none.
  local old_token, attempt, _, cancelled, holder, old_flags
  local due = tonumber(score)
  if leases[i] then
    old_token, attempt, _, cancelled, holder, old_flags = parse_lease(leases[i])
    if old_token and due <= NOW then lapsed = lapsed + 1 end
  end
  if not old_token then
    attempt = tries[i] and tonumber(string.match(tries[i], '^%d%d?%d?%d?%d?%d?%d?$')) or 0
  end
  local stays, reason, err = judge(
    body, score, due, expires, max_retries, mark, old_token, holder, attempt, latest_due)
  if stays then
    not_yet = not_yet + 1
  elseif is_occurrence or reason or cancelled then
    if not types_checked then trouble = check_types(DEAD, DIED, TEMPLATES, STATES) end
    types_checked, stays = true, trouble
  end
  if is_occurrence and not stays then
    occurred = true
    if not (old_token or cancelled) and (not reason or reason == 'expired') then
      -- If the occurrence does not start now, its schedule has moved or removed it. If it stands
      -- for others, it expires later.
      local starts
      starts, body = schedules().decide(id, body, due)
      stays = not starts
      if starts and reason and (parse_body(body) or 0) > NOW then reason = nil end
    end
    local schedule = schedules().parse_occurrence_id(id)
    if schedule and schedules().runs_short(schedule) then short[#short + 1] = schedule end
  end
  if not stays then
    if cancelled then
      remove(id)
      count('cancelled', 1)
    elseif reason then
      bury(id, attempt, reason, err)
      buried[#buried + 1] = id
      buried[#buried + 1] = reason
    else
      if tries[i] then tried[#tried + 1] = id end
      -- The reply repeats the head of the new lease. Format numbers with `digits`, because a
      -- conversion by Lua takes half as long as a Redis command.
      local text, head = write_lease(
        digits(token), digits(attempt + 1), score, is_occurrence and 's' or '', node)
      local length = digits(#id)
      scores[#scores + 1] = lease_end
      scores[#scores + 1] = id
      held[#held + 1] = id
      held[#held + 1] = text
      reply[#reply + 1] = head .. length .. ',' .. digits(#body) .. '|' .. id .. body
      remembered[#remembered + 1] = length .. ':' .. id
      if due > NOW then
        claimed_early = claimed_early + 1
        due = NOW
      end
      -- Count in two buckets for each doubling of the lateness in µs (dtimer/model/histogram.py).
      local bucket = math.min(LATEST, math.floor(2 * math.log(NOW - due + 1) / math.log(2)))
      lateness[bucket] = (lateness[bucket] or 0) + 1
      claimed = claimed + 1
      token = token + 1
    end
    if (cancelled or reason) and (is_occurrence or string.find(old_flags or '', 's', 1, true)) then
      schedules().ended(id)
    end
  end
end
